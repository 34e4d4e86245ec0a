"""The report's charts as inline SVG, drawn by hand: no script, no library, no resource."""
