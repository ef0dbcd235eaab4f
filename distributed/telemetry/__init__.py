"""Measurements of a server: statistics, counters, meters and the system monitor."""
