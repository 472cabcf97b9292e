"""Modified portraits for tests of difficult sources: turned in 3D, moved, covered by a hand, with a beard."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from models.avatar.detect import MESH_POINTS, MESH_PX, BlazeMesh, _square_around, _turned_square
from models.avatar.face import Face
from models.geometry import warp
from models.types import UInt8
from tests.support.avatar import hopper

GROUND = (90, 110, 130)


@cache
def detector() -> BlazeMesh:
    return BlazeMesh()


def face_of(picture: UInt8) -> Face:
    (face,) = detector().detect(picture)
    return face


def on_ground(height: int, width: int) -> UInt8:
    return np.full((height, width, 3), GROUND, np.uint8)


def put(canvas: UInt8, picture: UInt8, x: float, y: float, scale: float = 1.0, mask: UInt8 | None = None) -> UInt8:
    """Draw the picture on a copy of the canvas, with its corner at (x, y), sub-pixel, where `mask` is not 0."""
    motion = np.array([[scale, 0, x], [0, scale, y]])
    size = (canvas.shape[1], canvas.shape[0])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    drawn = cv2.warpAffine(picture, motion, size, flags=method)
    alpha = cv2.warpAffine(np.full(picture.shape[:2], 255, np.uint8) if mask is None else mask, motion, size)
    soft = cv2.GaussianBlur(alpha, (0, 0), 1.0)[..., None] / 255
    return (canvas * (1 - soft) + drawn * soft).astype(np.uint8)


def head_mask(picture: UInt8) -> UInt8:
    """An ellipse around the head."""
    face = face_of(picture)
    (x, y), size = face.mesh.mean(0), face.size_px
    mask = np.zeros(picture.shape[:2], np.uint8)
    middle, axes = (round(float(x)), round(float(y - 0.1 * size))), (round(0.55 * size), round(0.8 * size))
    return cv2.ellipse(mask, middle, axes, 0, 0, 360, 255, -1)


def behind_a_hand(picture: UInt8, face: Face) -> UInt8:
    """Draw four shaded fingers in the face's own colour across the mouth."""
    size, mouth = face.size_px, face.landmarks[48:68].mean(0)
    cheek = face.landmarks[[2, 14]].mean(0).astype(int)
    skin = picture[cheek[1] - 5 : cheek[1] + 5, cheek[0] - 5 : cheek[0] + 5].reshape(-1, 3).mean(0)
    mask, shade = np.zeros(picture.shape[:2], np.uint8), np.zeros(picture.shape[:2], np.float32)
    for finger in range(4):
        y = mouth[1] + (finger - 1.5) * 0.13 * size
        begin = (int(mouth[0] - 0.75 * size), int(y + 0.12 * size))
        end = (int(mouth[0] + (0.35 - 0.05 * abs(finger - 1)) * size), int(y))
        cv2.line(mask, begin, end, 255, int(0.12 * size))
        below = int(0.055 * size)
        cv2.line(shade, (begin[0], begin[1] + below), (end[0], end[1] + below), 1.0, max(2, int(0.03 * size)))
    lit = skin * (1 - 0.45 * cv2.GaussianBlur(shade, (0, 0), 0.02 * size)[..., None])
    soft = cv2.GaussianBlur(mask, (0, 0), 1.0)[..., None] / 255
    return (picture * (1 - soft) + lit * soft).astype(np.uint8)


def bearded(picture: UInt8, face: Face) -> UInt8:
    """Draw a full beard: dark hairs from ear to ear around the lips."""
    size, points = face.size_px, face.landmarks
    outline = np.concatenate([points[1:16], points[[35, 33, 31]]])
    mask = np.zeros(picture.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.round(outline + np.array((0, 0.02 * size))).astype(np.int32)], 255)
    cv2.fillPoly(mask, [np.round(points[48:60]).astype(np.int32)], 0)
    soft = cv2.GaussianBlur(mask, (0, 0), 0.02 * size)[..., None] / 255
    noise = np.random.default_rng(0).normal(0, 1, picture.shape[:2]).astype(np.float32)
    hairs = cv2.GaussianBlur(noise, (0, 0), sigmaX=0.5, sigmaY=2.5)[..., None]
    hair = np.clip(np.array((52, 40, 34)) * (1 + 0.9 * hairs), 0, 255)
    return (picture * (1 - soft) + hair * soft).astype(np.uint8)


@cache
def turned(yaw_deg: float, bow_deg: float = 0, size: int = 300, zoom: float = 1.2) -> UInt8:
    """Render Grace Hopper's face by its 3D FaceMesh, turned to the left and bowed, in front of an ellipse."""
    crop, points, triangles = _model()
    angle, bow = np.radians(yaw_deg), np.radians(bow_deg)
    back = np.array([points[:, 0].mean(), points[:, 1].mean(), points[:, 2].max()])
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    nod = np.array([[1, 0, 0], [0, np.cos(bow), -np.sin(bow)], [0, np.sin(bow), np.cos(bow)]])
    placed = (points - back) @ turn.T @ nod.T
    flat = placed[:, :2] * zoom + size / 2
    canvas = on_ground(size, size)
    cv2.ellipse(canvas, (size // 2, size // 2 - 8), (round(62 * zoom), round(85 * zoom)), 0, 0, 360, (120, 80, 60), -1)
    for corners in triangles[np.argsort(-placed[triangles][:, :, 2].mean(1))]:  # far triangles first
        source, target = points[corners, :2].astype(np.float32), flat[corners].astype(np.float32)
        if _area(source) * _area(target) > 0:  # otherwise its back is visible
            _draw_triangle(canvas, crop, source, target)
    return canvas


@cache
def _model() -> tuple[UInt8, np.ndarray, np.ndarray]:
    """The portrait cut to the mesh's input, the 468 points in 3D, `(468, 3)` px, and triangles between them."""
    picture, net = hopper(), detector()._mesh
    crop = warp(picture, _turned_square(*_square_around(face_of(picture).mesh), MESH_PX), MESH_PX, fine=False)
    net.setInput(np.ascontiguousarray(crop.transpose(2, 0, 1)[None], np.float32) / 255)
    outputs = sorted(net.forward(net.getUnconnectedOutLayersNames()), key=np.size)
    points = outputs[1].reshape(MESH_POINTS, 3).astype(np.float64)
    plane = cv2.Subdiv2D((-MESH_PX, -MESH_PX, 3 * MESH_PX, 3 * MESH_PX))
    number = {}
    for k, point in enumerate(points[:, :2].astype(np.float32)):
        plane.insert((float(point[0]), float(point[1])))
        number[point.tobytes()] = k
    corners = plane.getTriangleList().reshape(-1, 3, 2)
    found = [[number.get(corner.tobytes()) for corner in triangle] for triangle in corners]
    return crop, points, np.array([triangle for triangle in found if None not in triangle])


def _area(corners: np.ndarray) -> float:
    (ax, ay), (bx, by) = corners[1] - corners[0], corners[2] - corners[0]
    return float(ax * by - ay * bx)


def _draw_triangle(canvas: UInt8, crop: UInt8, source: np.ndarray, target: np.ndarray) -> None:
    size = canvas.shape[0]
    x1, y1 = np.clip(np.floor(target.min(0)).astype(int) - 1, 0, size)
    x2, y2 = np.clip(np.ceil(target.max(0)).astype(int) + 2, 0, size)
    if x2 <= x1 or y2 <= y1:
        return
    local = target - np.float32([x1, y1])
    affine = cv2.getAffineTransform(source, local)
    patch = cv2.warpAffine(crop, affine, (int(x2 - x1), int(y2 - y1)), borderMode=cv2.BORDER_REPLICATE)
    mask = np.zeros(patch.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, np.round(local * 16).astype(np.int32), 255, shift=4)
    canvas[y1:y2, x1:x2][mask > 0] = patch[mask > 0]
