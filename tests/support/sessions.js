// Requests ranges from a registry, many at once over HTTP/2 sessions of node's client: 100 requests on one session, and then the same
// with 40 further sessions of 30 requests each. Every response is compared with the file.
// Arguments: the registry's base URL, its CA, and a JSON list of its content.
'use strict';
const fs = require('fs');
const http2 = require('http2');

const [base, ca, listed] = process.argv.slice(2);
const contents = JSON.parse(fs.readFileSync(listed)).map(({ target, file }) => ({ target, content: fs.readFileSync(file) }));

// The number of requests with each outcome.
const outcomes = {};
let count = 0;

function ask(session) {
  count += 1;
  const { target, content } = contents[count % contents.length];
  const first = (count * 7919) % (content.length || 1);
  const last = Math.min(first + count * 37, content.length - 1);
  const ranged = content.length > 0;
  return new Promise((resolve) => {
    const request = session.request({ ':path': target, ...(ranged && { range: `bytes=${first}-${last}` }) });
    const chunks = [];
    let status;
    let error;
    request.on('response', (headers) => { status = headers[':status']; });
    request.on('data', (chunk) => chunks.push(chunk));
    request.on('error', (failure) => { error = failure; });
    request.on('close', () => {
      const same = Buffer.concat(chunks).equals(content.subarray(first, last + 1));
      const right = status === (ranged ? 206 : 200) && same && request.rstCode === 0;
      const outcome = right ? 'right' : error ? `${error.code}: ${error.message}` : `status ${status}, the same bytes: ${same}`;
      outcomes[outcome] = (outcomes[outcome] || 0) + 1;
      resolve();
    });
  });
}

async function run(shares) {
  const sessions = shares.map(() => http2.connect(base, { ca: fs.readFileSync(ca) }));
  sessions.forEach((session) => session.on('error', () => {}));
  await Promise.all(shares.flatMap((share, at) => Array.from({ length: share }, () => ask(sessions[at]))));
  const announced = sessions.map((session) => (session.destroyed ? 0 : session.remoteSettings.maxConcurrentStreams));
  sessions.forEach((session) => session.close());
  return Math.min(...announced);
}

(async () => {
  const alone = await run([100]);
  const among = await run([100, ...Array(40).fill(30)]);
  console.log(JSON.stringify({ outcomes, announced: [alone, among] }));
})();
