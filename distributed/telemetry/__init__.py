"""What a server counts and measures: statistics, counters, meters and the system monitor."""
