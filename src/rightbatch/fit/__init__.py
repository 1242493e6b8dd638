"""Two small laws from measured points: what a step costs, how many are needed."""
