"""Training drafters by self-distillation: the target writes the text and is the teacher."""
