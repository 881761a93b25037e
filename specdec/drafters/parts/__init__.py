"""What single drafters, or several, are built of."""
