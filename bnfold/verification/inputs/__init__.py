"""What models are fed: the words of the caller and the inputs of a model come in, arrays go out.

Nothing here knows what is compared, or on which device.
"""
