"""The wire: versioned headers in protobuf, tensor bytes beside them, one Flower record each."""
