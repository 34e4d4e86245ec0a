"""What is predicted: loss and metrics, one file a task."""
