// A stock client in another language: lists mixers, mixes one batch by a unary call and two over a stream.
// node mix.mjs PROTO ADDRESS; prints one JSON object.
import { createRequire } from 'node:module';

const require = createRequire(process.cwd() + '/');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [proto, address] = process.argv.slice(2);
const definition = loader.loadSync(proto, { keepCase: true, longs: Number, enums: String, defaults: true });
const { MixerService } = grpc.loadPackageDefinition(definition).samix.mixer.v1;
const client = new MixerService(address, grpc.credentials.createInsecure());
const deadline = () => ({ deadline: Date.now() + 20_000 });

const side = 32;
const pixels = Buffer.alloc(2 * 3 * side * side, (_, i) => i);
for (let i = 0; i < pixels.length; i++) pixels[i] = (i * 37) % 256;
const request = {
  reply_format: 'REPLY_FORMAT_IMAGES', pixel_format: 'PIXEL_FORMAT_UINT8',
  shape: [2, 3, side, side], lam: [0.25, 0.75], partner: [1, 0],
};
const call = (method, message) => new Promise((resolve, reject) =>
  client[method](message, deadline(), (error, reply) => (error ? reject(error) : resolve(reply))));

async function stream() {
  const talk = client.MixStream(deadline());
  const answers = [];
  const half = pixels.length / 2;
  for (const sequence of [1, 2]) {
    talk.write({ sequence, request, pixel_bytes: pixels.length, chunk: pixels.subarray(0, half) });
    talk.write({ sequence, chunk: pixels.subarray(half) });
  }
  talk.end();
  for await (const message of talk) if (message.response) answers.push(message);
  return answers;
}

const listed = await call('ListMixers', {});
const unary = await call('Mix', { ...request, pixels });
const streamed = await stream();
const refused = await call('Mix', { ...request, pixels: pixels.subarray(1) }).catch((error) => error);
console.log(JSON.stringify({
  mixers: listed.mixers.map((mixer) => mixer.name),
  logits: unary.mask_logits.toString('base64'),
  images: unary.pixels.length,
  streamed: streamed.map((message) => message.response.mask_logits.toString('base64')),
  streamed_images: streamed.map((message) => message.chunk.length),
  refused: [refused.code, refused.details],
}));
client.close();
