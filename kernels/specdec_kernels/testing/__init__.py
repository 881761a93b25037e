"""What tests, benchmarks and tuning of the kernels share; nothing here is needed to run them."""
