"""What the host does beside tensors: files, locks, messages, imports that wait."""
