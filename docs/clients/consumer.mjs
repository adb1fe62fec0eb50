// A consumer in Node: works outside the database, at least once, and needs no session of its own.
//
// Each statement may go through another connection of the pool, or of PgBouncer in transaction mode:
// a receipt belongs to its delivery and not to the session that received it.
//
//     npm install pg
//     node consumer.mjs       # where to connect: PGHOST, PGDATABASE, ... as with psql; Ctrl-C ends it
import pg from 'pg';

const pool = new pg.Pool();
let stopping = false;
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => { stopping = true; });

async function sendMail(delivery) {
  if (!delivery.payload.address) throw new Error('no address');
  console.log(`mail to ${delivery.payload.address}, attempt ${delivery.attempt}`);
}

while (!stopping) {
  // Waits inside the server, up to two seconds, and returns at once when there is something.
  const { rows } = await pool.query(
    "SELECT receipt, event_id, type, payload, attempt FROM evbus.receive('mailer', max_events => 50, lease => '1 minute', wait => '2 seconds')");
  const sent = [];
  for (const delivery of rows) {
    try {
      await sendMail(delivery);
      sent.push(delivery.receipt);
    } catch (error) {
      // Tried again after the subscription's backoff; a dead letter after max_attempts.
      await pool.query('SELECT evbus.nack($1, error => $2)', [[delivery.receipt], error.message]);
    }
  }
  if (sent.length > 0) {
    const { rows: [{ ack }] } = await pool.query('SELECT evbus.ack($1)', [sent]);
    if (ack < sent.length) console.warn(`${sent.length - ack} leases ran out: those mails are sent twice`);
  }
}
await pool.end();
