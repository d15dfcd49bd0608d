"""The verification of PyTorch models: nn.Module, ExportedProgram and .pt2, and ONNX files that were made of them."""
