"""What is asked for: strings in, values out. Reads no file."""
