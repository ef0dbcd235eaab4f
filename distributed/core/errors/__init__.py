"""An exception's way from the handler that raised it to the caller."""
