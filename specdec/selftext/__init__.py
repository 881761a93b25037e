"""Self-text: training conversations that the target model generates, and their store."""
