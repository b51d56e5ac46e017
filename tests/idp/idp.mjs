// The OpenID provider of the tests: `node idp.mjs PORT` prints "READY http://127.0.0.1:PORT". Loopback alone.
// Hooks for tests, POST with JSON: /test/sign {header, claims}, /test/rotate {keep}, /test/user {sub, claims|null}, /test/counts.
import { createServer } from 'node:http';
import { exportJWK, generateKeyPair, importJWK, SignJWT } from 'jose';
import { Provider } from 'oidc-provider';

const port = Number(process.argv[2] ?? 0);
const lifetime = Number(process.env.TOKEN_SECONDS ?? 60);
const deviceFlow = process.env.DEVICE_FLOW !== '0';
const grants = ['authorization_code', 'refresh_token', ...(deviceFlow ? ['urn:ietf:params:oauth:grant-type:device_code'] : []),
  ...(process.env.CLIENT_CREDENTIALS === '1' ? ['client_credentials'] : [])];
const audience = 'https://calnet.test/api';
const people = new Map(Object.entries({
  alice: { email: 'alice@example.test', email_verified: true, groups: ['admins', 'staff'], name: 'Alice A.' },
  bob: { email: 'bob@example.test', email_verified: true, groups: ['staff'], name: 'Bob B.' },
  mallory: { email: 'alice@example.test', email_verified: false, groups: ['staff'], name: 'Mallory M.' },
  carol: { email: 'carol@example.test', email_verified: true, name: 'Carol C.' },
}));

let made = 0;
async function newKey(alg) {
  const { privateKey } = await generateKeyPair(alg, { extractable: true });
  made += 1;
  return { ...(await exportJWK(privateKey)), alg, use: 'sig', kid: `${alg}-${made}` };
}
const newKeys = () => Promise.all(['RS256', 'ES256'].map(newKey));

let keys = await newKeys();
let issuer = '';
let handle;
let keyFetches = 0;

function provider() {
  return new Provider(issuer, {
    jwks: { keys },
    clients: [
      {
        client_id: 'calnet',
        client_secret: 'a-secret-of-the-tests-alone-0123456789',
        grant_types: grants,
        response_types: ['code'],
        redirect_uris: (process.env.REDIRECTS ?? 'http://127.0.0.1:1/auth/callback').split(' '),
      },
      {
        client_id: 'another',
        client_secret: 'another-secret-of-the-tests-0123456789',
        grant_types: grants,
        response_types: ['code'],
        redirect_uris: ['http://127.0.0.1:1/elsewhere'],
      },
    ],
    scopes: ['openid', 'profile', 'email', 'groups', 'offline_access'],
    claims: { openid: ['sub'], profile: ['name', 'preferred_username'], email: ['email', 'email_verified'], groups: ['groups'] },
    conformIdTokenClaims: false,
    features: {
      deviceFlow: { enabled: deviceFlow },
      devInteractions: { enabled: true },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => undefined,
        useGrantedResource: () => false,
        getResourceServerInfo: () => ({ scope: 'api', audience, accessTokenTTL: lifetime, accessTokenFormat: 'jwt', jwt: { sign: { alg: 'RS256' } } }),
      },
    },
    findAccount: (_, sub) => people.has(sub) ? { accountId: sub, claims: () => ({ sub, preferred_username: sub, ...people.get(sub) }) } : undefined,
    pkce: { required: () => process.env.NO_PKCE !== '1' },
    rotateRefreshToken: true,
    ttl: { AccessToken: lifetime, IdToken: lifetime, AuthorizationCode: 30, DeviceCode: 120, RefreshToken: 600, Session: 600, Interaction: 120, Grant: 600 },
    cookies: { keys: ['tests-alone'] },
  });
}

const hooks = {
  async sign({ header, claims }) {
    const key = keys.find((one) => one.alg === (header?.alg ?? 'RS256'));
    const token = await new SignJWT(claims).setProtectedHeader({ alg: key.alg, kid: key.kid, ...header }).sign(await importJWK(key, key.alg));
    return { token };
  },
  async rotate({ keep }) {
    const fresh = await newKeys();
    keys = keep ? [...fresh, ...keys] : fresh;
    handle = provider().callback();
    return { kids: keys.map((one) => one.kid) };
  },
  user({ sub, claims }) {
    if (claims === null) people.delete(sub);
    else people.set(sub, claims);
    return {};
  },
  counts: () => ({ keyFetches }),
  publicKeys: () => ({ keys: keys.map(({ d, p, q, dp, dq, qi, ...open }) => open) }),
};

const server = createServer(async (request, response) => {
  if (request.url === '/jwks') keyFetches += 1;
  if (!request.url.startsWith('/test/')) return handle(request, response);
  let body = '';
  for await (const part of request) body += part;
  const answer = await hooks[request.url.slice('/test/'.length)](body ? JSON.parse(body) : {});
  response.setHeader('content-type', 'application/json');
  return response.end(JSON.stringify(answer));
});
server.listen(port, '127.0.0.1', () => {
  issuer = `http://127.0.0.1:${server.address().port}`;
  handle = provider().callback();
  console.log('READY', issuer);
});
