"""NIfTI's world and ITK's: RAS and LPS.

Axes: X, Y, Z of an image's own grid.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def to_itk(data_XYZ: np.ndarray, affine: np.ndarray) -> Any:
    """An ITK image; ITK's world is LPS, NIfTI's RAS."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(data_XYZ.T, dtype=np.float32))
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:, 3].tolist())
    return image


def ras_matrix(transform: Any) -> np.ndarray:
    """An ITK affine as a (4, 4) matrix between RAS coordinates."""
    linear = np.array(transform.GetMatrix()).reshape(3, 3)
    centre = np.array(transform.GetCenter())
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre + transform.GetTranslation() - linear @ centre
    return np.asarray(FLIP @ matrix @ FLIP)
