"""Judges as rewards for trainers: in the process, and behind a server."""
