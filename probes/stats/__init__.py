"""What a number may claim: intervals, paired tests, distances of clouds."""
