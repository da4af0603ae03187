"""Head motion: where a point of the reference lies in each frame, estimated frame by frame.

Axes: T frames, N points of the reference, 6 rigid parameters (translations in mm, rotations in radians about the
volume's centre), X, Y, Z of the run's own grid.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
from scipy import ndimage

from pipeline.bold.register.movie import Movie

SMOOTHING_MM = 4.0  # SD for motion estimation: noise and interpolation error shrink, the basin widens
REFERENCE_POINTS = 12_000
MOST_ITERATIONS = 12
SMALLEST_STEP = 1e-3  # mm, and mm on a 50 mm sphere
MEAN_FRAMES = 40
LEAST_GAIN = 0.1  # of a frame's intensity to the reference's


def rigid_matrix(parameters_6: np.ndarray, centre_3: np.ndarray) -> np.ndarray:
    """(4, 4) matrix that rotates about `centre_3` (x, then y, then z) and translates, all in mm."""
    matrix = np.eye(4)
    for axis, angle in enumerate(parameters_6[3:]):
        turn, (first, second) = np.eye(4), [(1, 2), (2, 0), (0, 1)][axis]
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[second, first] = np.sin(angle)
        turn[first, second] = -np.sin(angle)
        matrix = turn @ matrix
    matrix[:3, 3] = centre_3 - matrix[:3, :3] @ centre_3 + parameters_6[:3]
    return matrix


def volume_centre(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Centre of a volume in mm."""
    return np.asarray(nib.affines.apply_affine(affine, (np.array(shape[:3]) - 1) / 2))


def estimate_motion(movie: Movie) -> np.ndarray:
    """Rigid motion of each frame, (T, 6): where a point of the reference lies in that frame.

    Two passes: against the middle frame, then against the mean realigned by the first, since the noise of a single
    frame would move all others against it. Each frame is matched by Gauss-Newton least squares on smoothed
    intensities, with a gain of its own, at the points of steepest gradient; the derivatives are those of the reference,
    so they are computed once (Baker and Matthews 2004, inverse compositional; Friston et al. 1995, linearisation).
    """
    still_T6 = np.zeros((len(movie), 6))
    roughly_T6 = _match_frames(movie, movie[len(movie) // 2], still_T6)
    return _match_frames(movie, realigned_mean(movie, roughly_T6), roughly_T6)


def _match_frames(movie: Movie, reference_XYZ: np.ndarray, start_T6: np.ndarray) -> np.ndarray:
    """One pass over the frames, each started from `start_T6`."""
    sigma, affine = SMOOTHING_MM / nib.affines.voxel_sizes(movie.affine), movie.affine
    smooth_XYZ = ndimage.gaussian_filter(reference_XYZ, sigma)
    centre_3 = volume_centre(movie.shape, affine)
    voxel_N3, jacobian_N7 = _linearised(smooth_XYZ, affine, centre_3)
    target_N, solver_7N = smooth_XYZ[tuple(voxel_N3.T)], np.linalg.pinv(jacobian_N7)
    points_N3 = nib.affines.apply_affine(affine, voxel_N3)
    motion_T6 = np.zeros_like(start_T6)
    for frame, start_6 in enumerate(start_T6):
        smooth_XYZ = ndimage.gaussian_filter(movie[frame], sigma)
        matrix = rigid_matrix(start_6, centre_3)
        matrix = _match(smooth_XYZ, affine, points_N3, target_N, solver_7N, centre_3, matrix)
        motion_T6[frame] = rigid_parameters(matrix, centre_3)
    return motion_T6


def _linearised(reference_XYZ: np.ndarray, affine: np.ndarray, centre_3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points of steepest gradient, and the derivative there by the six rigid parameters and the gain."""
    gradient_XYZ3 = np.stack(np.gradient(reference_XYZ), axis=-1) @ np.linalg.inv(affine[:3, :3])
    steepness_XYZ = np.linalg.norm(gradient_XYZ3, axis=-1)
    steepness_XYZ[[0, -1]] = steepness_XYZ[:, [0, -1]] = steepness_XYZ[:, :, [0, -1]] = 0  # smoothing bends the rim
    chosen = np.argsort(steepness_XYZ, axis=None)[-REFERENCE_POINTS:]
    voxel_N3 = np.stack(np.unravel_index(chosen, reference_XYZ.shape), axis=1)
    gradient_N3 = gradient_XYZ3[tuple(voxel_N3.T)]
    arm_N3 = nib.affines.apply_affine(affine, voxel_N3) - centre_3
    gain_N1 = reference_XYZ[tuple(voxel_N3.T)][:, None]
    return voxel_N3, np.concatenate([gradient_N3, np.cross(arm_N3, gradient_N3), gain_N1], axis=1)


def _match(
    frame_XYZ: np.ndarray,
    affine: np.ndarray,
    points_N3: np.ndarray,
    target_N: np.ndarray,
    solver_7N: np.ndarray,
    centre_3: np.ndarray,
    matrix: np.ndarray,
) -> np.ndarray:
    """Matrix from reference mm to this frame's mm, started from `matrix`."""
    to_voxel, start = np.linalg.inv(affine), matrix
    for _ in range(MOST_ITERATIONS):
        voxel_3N = nib.affines.apply_affine(to_voxel @ matrix, points_N3).T
        moved_N = ndimage.map_coordinates(frame_XYZ, voxel_3N, order=1, mode="nearest")
        step_7 = solver_7N @ (moved_N - target_N)
        if not 1 + step_7[6] > LEAST_GAIN:
            return start  # an empty frame says nothing of motion
        matrix = matrix @ np.linalg.inv(rigid_matrix(step_7[:6] / (1 + step_7[6]), centre_3))
        if np.abs(step_7[:6] * [1, 1, 1, 50, 50, 50]).max() < SMALLEST_STEP:
            break
    return matrix


def rigid_parameters(matrix: np.ndarray, centre_3: np.ndarray) -> np.ndarray:
    """The six parameters of `rigid_matrix`."""
    x = np.arctan2(matrix[2, 1], matrix[2, 2])
    y = -np.arcsin(np.clip(matrix[2, 0], -1, 1))
    z = np.arctan2(matrix[1, 0], matrix[0, 0])
    return np.array([*(nib.affines.apply_affine(matrix, centre_3) - centre_3), x, y, z])


def realigned_mean(movie: Movie, motion_T6: np.ndarray) -> np.ndarray:
    """Mean of about forty realigned frames, linear: it is only looked at and matched, never stored as signal."""
    frames = np.unique(np.linspace(0, len(movie) - 1, MEAN_FRAMES).astype(int))
    centre_3, mean_XYZ = volume_centre(movie.shape, movie.affine), np.zeros(movie.shape)
    for frame in frames:
        to_frame = np.linalg.inv(movie.affine) @ rigid_matrix(motion_T6[frame], centre_3) @ movie.affine
        mean_XYZ += ndimage.affine_transform(movie[int(frame)], to_frame, order=1, mode="nearest")
    return (mean_XYZ / len(frames)).astype(np.float32)
