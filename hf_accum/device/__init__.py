"""A device: its memory, its time, and how it says that memory ran out."""
