"""Light through a stained section: Beer and Lambert, lens, local defocus, sharpening, sensor and JPEG."""

from __future__ import annotations

import cv2
import numpy as np

from ..optics import Stain


def expose(canvas, stain: Stain, damaged: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Expose a canvas of concentrations.

    Parameters
    ----------
    canvas
        With ``eosin`` and ``haematoxylin``, float32 (y, x), ``mpp`` and its ``ground``.
    stain
        Stain, light and scanner.
    damaged
        0 to 1 (y, x): where the tissue is damaged, and a little out of focus.

    Returns
    -------
    jpeg, image
        The encoded picture, and its decoding: uint8 (y, x, 3) RGB.
    """
    ground, mpp = canvas.ground, canvas.mpp
    grain = 1 + np.float32(stain.grain) * canvas.texture("grain", 0.3)
    eosin, haematoxylin = canvas.eosin * grain * stain.strength_e, canvas.haematoxylin * grain * stain.strength_h
    vector_h, vector_e = (np.array(v) / np.linalg.norm(v) for v in (stain.haematoxylin, stain.eosin))
    uneven = canvas.fine(1 + np.float32(stain.illumination) * ground.noise("lamp", 300))
    focus = stain.defocus * np.clip(0.9 * ground.noise("focus", 60) - 0.15, 0, 1)
    unsharp = np.clip(canvas.fine(focus.astype(np.float32)) + 0.35 * damaged, 0, 1)
    stream = ground.stream("sensor")
    image = np.empty((*canvas.shape, 3), np.uint8)
    for channel in range(3):
        density = haematoxylin * np.float32(vector_h[channel]) + eosin * np.float32(vector_e[channel])
        light = np.exp(-density) * np.float32(1 - stain.glare) + np.float32(stain.glare)
        light = cv2.GaussianBlur(light, (0, 0), stain.blur_um / mpp)
        light += unsharp * (cv2.GaussianBlur(light, (0, 0), stain.defocus_um / mpp) - light)
        light += np.float32(stain.sharpening) * (light - cv2.GaussianBlur(light, (0, 0), stain.sharpening_um / mpp))
        light *= uneven * np.float32(stain.white_point[channel])
        light += np.float32(stain.noise) * stream.standard_normal(canvas.shape, dtype=np.float32)
        image[..., channel] = np.clip(np.rint(light), 0, 255)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(stain.jpeg_quality)]
    jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1].tobytes()
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return jpeg, cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
