"""anykvm: KVM in user space, for every architecture."""
