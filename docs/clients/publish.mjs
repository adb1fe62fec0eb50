// Publishing from Node, in the transaction that does the work: both commit, or neither.
//     npm install pg; node publish.mjs
import pg from 'pg';

const client = new pg.Client();
await client.connect();
try {
  await client.query('BEGIN');
  // ... INSERT INTO orders ... goes here
  const { rows: [{ publish: eventId }] } = await client.query(
    "SELECT evbus.publish('orders', 'order.paid', $1, key => $2)",
    [{ order: 42, address: 'customer42@example.com' }, '42']);
  await client.query('COMMIT');
  console.log('published', eventId); // a string: bigint is wider than a JavaScript number
} catch (error) {
  await client.query('ROLLBACK');
  throw error;
} finally {
  await client.end();
}
