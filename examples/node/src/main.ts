// Mixes two pictures by a running mixer server: small copies go up, mask logits come back, own pixels are blended here.
import { parseArgs } from 'node:util';

import { Mixers } from './client.js';
import type { MixerInfo__Output } from './generated/samix/mixer/v1/MixerInfo.js';
import { mixPixels, renderMask } from './masks.js';
import { planes, readSquare, shorterSide, writePng } from './pictures.js';

const LARGEST_SIDE = 512;
const USAGE =
  'usage: node dist/main.js HOST:PORT A.jpg B.jpg [--lam 0.5] [--mixer NAME] [--out mixed.png] [--mask mask.png] [--protos DIR]';

async function main(): Promise<void> {
  const { positionals, values } = parseArgs({
    allowPositionals: true,
    options: {
      lam: { type: 'string', default: '0.5' },
      mixer: { type: 'string' },
      out: { type: 'string', default: 'mixed.png' },
      mask: { type: 'string', default: 'mask.png' },
      protos: { type: 'string', default: '../../protos' },
    },
  });
  if (positionals.length !== 3) throw new Error(USAGE);
  const [address, ...files] = positionals;
  const mixers = new Mixers(address, values.protos);
  try {
    const mixer = choose(await mixers.list(), values.mixer);
    await mix(mixers, mixer, files, Number(values.lam), values.out, values.mask);
  } finally {
    mixers.close();
  }
}

function choose(hosted: MixerInfo__Output[], name?: string): MixerInfo__Output {
  for (const info of hosted) console.log(`${info.name} ${info.version}: trained on ${info.imageSize} px`);
  const mixer = name ? hosted.find((info) => info.name === name) : hosted[0];
  if (!mixer) throw new Error(`the server hosts no mixer ${name ?? 'at all'}`);
  return mixer;
}

async function mix(
  mixers: Mixers, mixer: MixerInfo__Output, files: string[], lam: number, out: string, maskFile: string,
): Promise<void> {
  const side = Math.min(LARGEST_SIDE, ...(await Promise.all(files.map(shorterSide))));
  const copySide = Math.min(side, mixer.imageSize || side); // masks are best at the size the mixer was trained on
  const copies = await Promise.all(files.map((file) => readSquare(file, copySide)));
  const answer = await mixers.mix({
    mixer: mixer.name,
    replyFormat: 'REPLY_FORMAT_MASK_LOGITS',
    pixelFormat: 'PIXEL_FORMAT_UINT8',
    shape: [2, 3, copySide, copySide],
    lam: [lam, lam],
    partner: [1, 0], // the first with the second, and the second with the first
    pixels: Buffer.concat(copies.map(planes)),
  });
  const mask = renderMask(answer, 0, lam, side);
  const [a, b] = await Promise.all(files.map((file) => readSquare(file, side)));
  await writePng(out, mixPixels(a, b, mask), side, 3);
  await writePng(maskFile, Uint8Array.from(mask, (share) => Math.round(255 * share)), side, 1);
  console.log(`${out}: ${side} px, lambda ${lam}, by ${answer.mixer} ${answer.version}; ${maskFile}: white where A stays`);
}

main().catch((error: Error & { details?: string }) => {
  console.error(`error: ${error.details || error.message}`);
  process.exitCode = 1;
});
