"""What crosses the wire: one packed array and a manifest down, one packed array and a receipt up."""
