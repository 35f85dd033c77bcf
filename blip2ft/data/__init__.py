"""From a source on disk or on the hub to tensors: records, images, batches."""
