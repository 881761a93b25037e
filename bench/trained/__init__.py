"""What trainings are worth, on equally much text."""
