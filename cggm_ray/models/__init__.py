"""Networks: encoders, fusion and head composed by modality name, and the guide classifiers."""
