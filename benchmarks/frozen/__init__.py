"""What a frozen backbone costs: cached features and block inputs against the plain loop."""
