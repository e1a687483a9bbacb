"""What an example is: a room for each task."""
