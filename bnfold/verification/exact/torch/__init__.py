"""The exact gate for exported programs and modules, in eager float64 on the CPU; no ONNX, no other device.

It pairs values as the sites gate does, and shares the small numbers and the judging with the gate for ONNX.
"""
