// From mask logits to mixed pixels: the arithmetic that every client of a mixer does alike.
import type { MixResponse__Output } from './generated/samix/mixer/v1/MixResponse.js';

/** Renders the mask of one image of an answer: A's share of each pixel, [side, side], row by row. */
export function renderMask(answer: MixResponse__Output, index: number, lam: number, side: number): Float32Array {
  const { upsampling, lamMargin } = answer.rendering!;
  if (lamMargin > 0 && Math.min(lam, 1 - lam) <= lamMargin) return new Float32Array(side * side).fill(lam);
  const [, , rows, columns] = answer.maskShape;
  const logits = readFloat16(answer.maskLogits, index * rows * columns, rows * columns);
  const place = upsampling === 'UPSAMPLING_NEAREST' ? nearest : bilinear;
  const mask = new Float32Array(side * side);
  for (let y = 0; y < side; y++) {
    const [top, bottom, down] = place(y, rows, side);
    for (let x = 0; x < side; x++) {
      const [left, right, across] = place(x, columns, side);
      const above = blend(logits[top * columns + left], logits[top * columns + right], across);
      const below = blend(logits[bottom * columns + left], logits[bottom * columns + right], across);
      mask[y * side + x] = 1 / (1 + Math.exp(-blend(above, below, down))); // upsampled first, then the sigmoid
    }
  }
  return mask;
}

/** Mixes two pictures [side, side, 3] by the mask of the first. */
export function mixPixels(a: Uint8Array, b: Uint8Array, mask: Float32Array): Uint8Array {
  return a.map((value, i) => Math.round(blend(b[i], value, mask[Math.floor(i / 3)])));
}

/** The two neighbours of an output pixel among `count` logits, and how near it is to the second. */
type Place = (output: number, count: number, side: number) => [number, number, number];

const bilinear: Place = (output, count, side) => {
  const exact = Math.max(0, ((output + 0.5) * count) / side - 0.5); // corners are not aligned
  const low = Math.min(Math.floor(exact), count - 1);
  return [low, Math.min(low + 1, count - 1), exact - low];
};

const nearest: Place = (output, count, side) => {
  const only = Math.floor((output * count) / side);
  return [only, only, 0];
};

function blend(from: number, to: number, share: number): number {
  return from + (to - from) * share;
}

function readFloat16(bytes: Buffer, first: number, count: number): Float32Array {
  return Float32Array.from({ length: count }, (_, i) => float16(bytes.readUInt16LE(2 * (first + i))));
}

/** Reads a finite number of half precision; logits lie within +-30. */
function float16(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = (bits & 0x3ff) / 1024;
  return sign * (exponent === 0 ? fraction * 2 ** -14 : (1 + fraction) * 2 ** (exponent - 15));
}
