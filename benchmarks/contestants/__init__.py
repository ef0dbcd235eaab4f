"""The measured programs: each is a small server, and a client that executes commands.

Each runs in an environment with one library.  They share `channel`, which reads the commands, and
`timing`; both need the standard library only.
"""
