"""What our gRPC services share: frames of a document and an array, with declared sizes."""
