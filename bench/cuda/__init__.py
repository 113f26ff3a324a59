"""`python -m bench --device cuda`: the layers of rnnfast.torch beside torch.nn's on a device."""
