"""PyTorch modules and exported programs: load and save, lift, and carry plans out."""
