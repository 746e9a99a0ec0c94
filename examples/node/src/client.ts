// The mixer service as promises, each with a deadline.
import * as grpc from '@grpc/grpc-js';
import * as loader from '@grpc/proto-loader';

import type { ProtoGrpcType } from './generated/mixer.js';
import type { MixerInfo__Output } from './generated/samix/mixer/v1/MixerInfo.js';
import type { MixRequest } from './generated/samix/mixer/v1/MixRequest.js';
import type { MixResponse__Output } from './generated/samix/mixer/v1/MixResponse.js';
import type { MixerServiceClient } from './generated/samix/mixer/v1/MixerService.js';

const DEADLINE_MS = 20_000;

export class Mixers {
  private readonly service: MixerServiceClient;

  /** `protos` is the folder that holds samix/mixer/v1/mixer.proto. */
  constructor(address: string, protos: string) {
    const options = { includeDirs: [protos], longs: Number, enums: String, defaults: true, oneofs: true };
    const definition = loader.loadSync('samix/mixer/v1/mixer.proto', options);
    const types = grpc.loadPackageDefinition(definition) as unknown as ProtoGrpcType;
    this.service = new types.samix.mixer.v1.MixerService(address, grpc.credentials.createInsecure());
  }

  list(): Promise<MixerInfo__Output[]> {
    return new Promise((resolve, reject) =>
      this.service.listMixers({}, deadline(), (error, reply) => (error ? reject(error) : resolve(reply!.mixers))),
    );
  }

  mix(request: MixRequest): Promise<MixResponse__Output> {
    return new Promise((resolve, reject) =>
      this.service.mix(request, deadline(), (error, reply) => (error ? reject(error) : resolve(reply!))),
    );
  }

  close(): void {
    this.service.close();
  }
}

function deadline(): grpc.CallOptions {
  return { deadline: Date.now() + DEADLINE_MS };
}
