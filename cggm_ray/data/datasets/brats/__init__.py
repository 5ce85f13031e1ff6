"""BraTS: tumour segmentation from four MRI sequences."""
