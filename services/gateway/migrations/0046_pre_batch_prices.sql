-- Requests of batches run behind live ones, at a share of the price.
SET LOCAL lock_timeout = '1s';

-- Their share of each of the model's prices.
ALTER TABLE prices ADD COLUMN batch_percent smallint NOT NULL DEFAULT 50;

-- Whether that share applies, for a gateway that settles a lost one's requests.
ALTER TABLE reservations ADD COLUMN is_batch boolean NOT NULL DEFAULT false;
