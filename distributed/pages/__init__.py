"""Pages over HTTP that show a server at work."""
