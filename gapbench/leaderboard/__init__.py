"""Leaderboard submissions: their files, making one, checking one. No model runs unless asked to."""
