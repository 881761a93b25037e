"""Tables and the picture of settings that are computed."""
