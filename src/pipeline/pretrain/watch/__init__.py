"""What a person sees of trainings: a bar, the table of the grid, event files."""
