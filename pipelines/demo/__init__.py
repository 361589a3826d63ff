"""The demo's data and its small autoencoder: what `make demo` runs on."""
