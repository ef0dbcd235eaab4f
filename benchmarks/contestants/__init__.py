"""The programs that are measured: each a small server, and a client that does what it is told.

They run in environments that have one library each. All that they share is `channel`, by which
they are commanded, and `timing`; both need the standard library only.
"""
