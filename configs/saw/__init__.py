"""SAW: stage-aware weighting of several rewards."""
