"""Early stopping: members answer one after another, until an image's answer is confident enough."""
