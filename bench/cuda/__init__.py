"""`python -m bench --device cuda`: times rnnfast.torch's layers and torch.nn's on a device."""
