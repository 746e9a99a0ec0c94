// Picture files in and out.
import sharp from 'sharp';

/** The shorter side of a picture, in pixels. */
export async function shorterSide(file: string): Promise<number> {
  const { width, height } = await sharp(file).metadata();
  return Math.min(width, height);
}

/** Reads the middle of a picture as RGB, uint8 [side, side, 3]: upright, what is transparent on white. */
export function readSquare(file: string, side: number): Promise<Buffer> {
  const upright = sharp(file).autoOrient().flatten({ background: 'white' }).toColourspace('srgb');
  return upright.resize(side, side, { fit: 'cover' }).raw().toBuffer();
}

/** Brings pixels from [side, side, 3] to [3, side, side], as they travel. */
export function planes(pixels: Uint8Array): Buffer {
  const count = pixels.length / 3;
  const planar = Buffer.alloc(pixels.length);
  pixels.forEach((value, i) => (planar[(i % 3) * count + Math.floor(i / 3)] = value));
  return planar;
}

/** Writes uint8 [side, side, channels], three channels or one, as PNG. */
export async function writePng(file: string, pixels: Uint8Array, side: number, channels: 1 | 3): Promise<void> {
  const image = sharp(pixels, { raw: { width: side, height: side, channels } });
  await (channels === 1 ? image.toColourspace('b-w') : image).png().toFile(file);
}
