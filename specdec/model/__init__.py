"""The target model: its parts, KV cache, tree attention, and the checks at load time."""
